package interop;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.TreeSet;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.AccessChannel;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.client.trace.TraceBean;
import org.apache.rocketmq.client.trace.TraceContext;
import org.apache.rocketmq.client.trace.TraceDataEncoder;
import org.apache.rocketmq.client.trace.TraceTransferBean;
import org.apache.rocketmq.client.trace.TraceType;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageType;

/**
 * Message traces on Apache's client.
 *
 * <pre>
 *   TracePeer vectors                             prints "NAME body-in-hex keys" of made-up traces
 *   TracePeer decode HEX                          prints what Apache's decoder reads in the body of a trace message
 *   TracePeer run NAMESRV TOPIC TRACE_TOPIC       sends one message each plain, delayed, in a transaction; consumes them; all traced
 * </pre>
 */
public final class TracePeer {
    private static final long TIME = 1700000000123L;

    private TracePeer() {
    }

    public static void main(String[] args) throws Exception {
        switch (args[0]) {
            case "vectors":
                vectors();
                break;
            case "decode":
                decode(args[1]);
                break;
            default:
                run(args[1], args[2], args[3]);
        }
        System.exit(0);
    }

    private static void vectors() {
        print("pub", context(TraceType.Pub, bean("Orders", "7F0000010A0B18B4AAC217A3C1D20000", "paid", "order-7 customer-9", MessageType.Normal_Msg)));
        print("pub-bare", context(TraceType.Pub, bean("Orders", "7F0000010A0B18B4AAC217A3C1D20001", null, null, MessageType.Delay_Msg)));
        TraceContext failed = context(TraceType.Pub, bean("Bestellungen", "7F0000010A0B18B4AAC217A3C1D20002", "grün", "ключ", MessageType.Trans_Msg_Half));
        failed.setSuccess(false);
        print("pub-failed", failed);
        TraceBean one = bean("Orders", "7F0000010A0B18B4AAC217A3C1D20000", "paid", "order-7", MessageType.Normal_Msg);
        TraceBean two = bean("Orders", "7F0000010A0B18B4AAC217A3C1D20001", null, null, MessageType.Normal_Msg);
        two.setRetryTimes(3);
        print("sub-before", context(TraceType.SubBefore, one, two));
        TraceContext noRegion = context(TraceType.SubBefore, two);
        noRegion.setRegionId(null);
        print("sub-before-no-region", noRegion);
        TraceContext after = context(TraceType.SubAfter, one, two);
        after.setSuccess(false);
        after.setContextCode(2);
        print("sub-after", after);
        TraceBean ended = bean("Orders", "7F0000010A0B18B4AAC217A3C1D20003", "paid", null, MessageType.Trans_msg_Commit);
        ended.setTransactionId("7F0000010A0B18B4AAC217A3C1D20003");
        ended.setTransactionState(LocalTransactionState.ROLLBACK_MESSAGE);
        ended.setFromTransactionCheck(true);
        print("end-transaction", context(TraceType.EndTransaction, ended));
    }

    private static TraceContext context(TraceType type, TraceBean... beans) {
        TraceContext context = new TraceContext();
        context.setTraceType(type);
        context.setTimeStamp(TIME);
        context.setRegionId("DefaultRegion");
        context.setGroupName("shop");
        context.setRequestId("7F0000010A0B18B4AAC217A3C1D2FFFF");
        context.setCostTime(12);
        context.setAccessChannel(AccessChannel.LOCAL);
        context.setTraceBeans(new ArrayList<>(Arrays.asList(beans)));
        return context;
    }

    private static TraceBean bean(String topic, String id, String tags, String keys, MessageType type) {
        TraceBean bean = new TraceBean();
        bean.setTopic(topic);
        bean.setMsgId(id);
        bean.setOffsetMsgId("7F00000100002A9F000000000000ABCD");
        bean.setTags(tags);
        bean.setKeys(keys);
        bean.setStoreHost("127.0.0.1:10911");
        bean.setBodyLength(345);
        bean.setMsgType(type);
        return bean;
    }

    private static void print(String name, TraceContext context) {
        TraceTransferBean transfer = TraceDataEncoder.encoderFromContextBean(context);
        StringBuilder hex = new StringBuilder();
        for (byte octet : transfer.getTransData().getBytes(StandardCharsets.UTF_8)) {
            hex.append(String.format("%02x", octet));
        }
        System.out.println(name + " " + hex + " " + String.join(" ", new TreeSet<>(transfer.getTransKey())));
    }

    private static void decode(String hex) {
        byte[] body = new byte[hex.length() / 2];
        for (int i = 0; i < body.length; i++) {
            body[i] = (byte) Integer.parseInt(hex.substring(2 * i, 2 * i + 2), 16);
        }
        for (TraceContext context : TraceDataEncoder.decoderFromTraceDataString(new String(body, StandardCharsets.UTF_8))) {
            TraceBean bean = context.getTraceBeans().get(0);
            System.out.println(String.join("|", "TRACE", context.getTraceType().name(), String.valueOf(context.getRegionId()), context.getGroupName(),
                bean.getTopic(), bean.getMsgId(), bean.getTags(), bean.getKeys(), String.valueOf(bean.getBodyLength()), String.valueOf(bean.getMsgType()),
                bean.getOffsetMsgId(), String.valueOf(context.isSuccess()), String.valueOf(bean.getRetryTimes()), String.valueOf(context.getContextCode()),
                String.valueOf(bean.getTransactionId()), String.valueOf(bean.getTransactionState()), String.valueOf(bean.isFromTransactionCheck())));
        }
    }

    private static void run(String namesrv, String topic, String traceTopic) throws Exception {
        DefaultMQProducer producer = new DefaultMQProducer("java_tracing", true, traceTopic);
        producer.setNamesrvAddr(namesrv);
        producer.start();
        Message plain = new Message(topic, "tag", "key-1 key-2", "plain".getBytes(StandardCharsets.UTF_8));
        print("plain", producer.send(plain));
        Message delayed = new Message(topic, "delayed".getBytes(StandardCharsets.UTF_8));
        delayed.setDelayTimeLevel(1);
        print("delayed", producer.send(delayed));
        TransactionMQProducer transactional = new TransactionMQProducer(null, "java_tracing_tx", null, true, traceTopic);
        transactional.setNamesrvAddr(namesrv);
        transactional.setTransactionListener(new TransactionListener() {
            @Override
            public LocalTransactionState executeLocalTransaction(Message message, Object argument) {
                return LocalTransactionState.COMMIT_MESSAGE;
            }

            @Override
            public LocalTransactionState checkLocalTransaction(MessageExt message) {
                return LocalTransactionState.UNKNOW;
            }
        });
        transactional.start();
        print("transaction", transactional.sendMessageInTransaction(new Message(topic, "transaction".getBytes(StandardCharsets.UTF_8)), null));
        consume(namesrv, topic, traceTopic);
        transactional.shutdown();
        producer.shutdown();
    }

    private static void print(String what, SendResult sent) {
        System.out.println("SENT " + what + " " + sent.getMsgId() + " " + sent.getOffsetMsgId());
    }

    private static void consume(String namesrv, String topic, String traceTopic) throws Exception {
        CountDownLatch missing = new CountDownLatch(3);
        List<String> failed = new ArrayList<>();
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer("java_tracing_" + topic, true, traceTopic);
        consumer.setNamesrvAddr(namesrv);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            String body = new String(messages.get(0).getBody(), StandardCharsets.UTF_8);
            synchronized (failed) {
                if (body.equals("plain") && failed.isEmpty()) {
                    failed.add(body);
                    return ConsumeConcurrentlyStatus.RECONSUME_LATER;
                }
            }
            if (!body.equals("makes the topic")) {
                missing.countDown();
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        System.out.println(missing.await(60, TimeUnit.SECONDS) ? "CONSUMED" : "MISSING");
        Thread.sleep(2_000); // a client that shuts down may lose the traces of its last half second
        consumer.shutdown();
    }
}
