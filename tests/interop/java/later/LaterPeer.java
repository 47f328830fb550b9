package interop;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.client.producer.TransactionSendResult;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/**
 * Transactions and timers on Apache's 5.3.3 client: {@code LaterPeer NAMESRV TOPIC GROUP}. Prints what happened, the
 * same lines for every broker that does the same.
 */
public final class LaterPeer implements TransactionListener, MessageListenerConcurrently {
    /** Properties that do not say what happened: of 5.x brokers only, of 4.9's plain messages not, of ours only. */
    private static final Set<String> LEFT_OUT = new TreeSet<>(
        Arrays.asList("MSG_REGION", "TRACE_ON", "WAIT", "TRAN_PREPARED_QUEUE_OFFSET"));

    private final List<MessageExt> received = Collections.synchronizedList(new ArrayList<>());
    private final List<String> asked = Collections.synchronizedList(new ArrayList<>());
    private final String topic;
    private final TransactionMQProducer producer;

    private LaterPeer(String namesrv, String topic, String group) throws Exception {
        this.topic = topic;
        producer = new TransactionMQProducer(group + "_producer");
        producer.setNamesrvAddr(namesrv);
        producer.setTransactionListener(this);
        producer.start();
        producer.send(message("first"));
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(group);
        consumer.setNamesrvAddr(namesrv);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(topic, "A");
        consumer.registerMessageListener(this);
        consumer.start();
        await("first", 30_000);
    }

    public static void main(String[] args) throws Exception {
        LaterPeer peer = new LaterPeer(args[0], args[1], args[2]);
        peer.transactions();
        peer.timers();
        peer.recalls();
        System.exit(0);
    }

    private void transactions() throws Exception {
        for (String name : new String[] {"COMMIT_MESSAGE", "ROLLBACK_MESSAGE", "UNKNOW"}) {
            TransactionSendResult result = producer.sendMessageInTransaction(message(name), null);
            System.out.println("transaction " + name + ": " + result.getSendStatus() + " " + result.getLocalTransactionState()
                + " queue " + result.getMessageQueue().getTopic().equals(topic) + " id " + result.getMsgId().equals(result.getTransactionId()));
        }
        await("COMMIT_MESSAGE", 10_000);
        await("UNKNOW", 60_000);
        Thread.sleep(4_000);
        for (String name : new String[] {"COMMIT_MESSAGE", "ROLLBACK_MESSAGE", "UNKNOW"}) {
            say(name);
        }
        System.out.println("asked " + new TreeSet<>(asked));
    }

    private void timers() throws Exception {
        long now = System.currentTimeMillis();
        Message byDelay = message("by delay");
        byDelay.setDelayTimeMs(1_500);
        Message bySeconds = message("by seconds");
        bySeconds.setDelayTimeSec(2);
        Message byTime = message("by time");
        byTime.setDeliverTimeMs(now + 2_700);
        Message past = message("past");
        past.setDeliverTimeMs(now - 10_000);
        Message far = message("far");
        far.setDelayTimeSec(4 * 24 * 3600);
        long[] due = {now + 1_500, now + 2_000, now + 2_700, now};
        Message[] messages = {byDelay, bySeconds, byTime, past};
        for (Message message : messages) {
            SendResult result = producer.send(message);
            System.out.println("timer " + body(message) + ": " + result.getSendStatus() + " handle " + (result.getRecallHandle() != null));
        }
        try {
            System.out.println("timer far: " + producer.send(far).getSendStatus());
        } catch (MQBrokerException error) {
            System.out.println("timer far: " + error.getResponseCode());
        }
        for (int i = 0; i < messages.length; i++) {
            MessageExt message = await(body(messages[i]), 20_000);
            long late = message.getStoreTimestamp() - due[i];
            System.out.println("early " + (late < 0) + " late " + (late > 3_000));
            say(body(messages[i]));
        }
    }

    private void recalls() throws Exception {
        Message gone = message("gone");
        gone.setDelayTimeSec(6);
        SendResult sent = producer.send(gone);
        Message late = message("late");
        late.setDelayTimeSec(1);
        SendResult lateSent = producer.send(late);
        System.out.println("recall: " + producer.recallMessage(topic, sent.getRecallHandle()).equals(sent.getMsgId()));
        await("late", 20_000);
        recall("too late", topic, lateSent.getRecallHandle());
        recall("other topic", "TBW102", sent.getRecallHandle());
        Thread.sleep(9_000);
        say("gone");
        say("late");
    }

    private void recall(String what, String topic, String handle) throws Exception {
        try {
            System.out.println("recall " + what + ": " + producer.recallMessage(topic, handle));
        } catch (MQBrokerException error) {
            System.out.println("recall " + what + ": " + error.getResponseCode() + " " + error.getErrorMessage());
        }
    }

    private void say(String body) {
        int count = 0;
        TreeSet<String> names = new TreeSet<>();
        synchronized (received) {
            for (MessageExt message : received) {
                if (body.equals(body(message))) {
                    count++;
                    names.addAll(message.getProperties().keySet());
                }
            }
        }
        names.removeAll(LEFT_OUT);
        System.out.println(body + " delivered " + count + " " + names);
    }

    private MessageExt await(String body, long millis) throws InterruptedException {
        long end = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(millis);
        while (System.nanoTime() < end) {
            synchronized (received) {
                for (MessageExt message : received) {
                    if (body.equals(body(message))) {
                        return message;
                    }
                }
            }
            Thread.sleep(20);
        }
        throw new IllegalStateException(body + " did not come");
    }

    private Message message(String body) {
        return new Message(topic, "A", "key of " + body, body.getBytes(StandardCharsets.UTF_8));
    }

    private static String body(Message message) {
        return new String(message.getBody(), StandardCharsets.UTF_8);
    }

    @Override
    public LocalTransactionState executeLocalTransaction(Message message, Object argument) {
        return LocalTransactionState.valueOf(body(message));
    }

    @Override
    public LocalTransactionState checkLocalTransaction(MessageExt message) {
        asked.add(body(message) + " of " + message.getTopic().equals(topic));
        return asked.size() < 2 ? LocalTransactionState.UNKNOW : LocalTransactionState.COMMIT_MESSAGE;
    }

    @Override
    public ConsumeConcurrentlyStatus consumeMessage(
        List<MessageExt> messages, org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyContext context) {
        received.addAll(messages);
        return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
    }
}
