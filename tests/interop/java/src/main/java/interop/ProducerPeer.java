package interop;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.zip.CRC32;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.selector.SelectMessageQueueByHash;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/**
 * What a producer can do beyond plain sends, on Apache's client.
 *
 * <pre>
 *   ProducerPeer send    NAMESRV TOPIC NAMESPACE|-         a large body, a batch of three, keys by their hash
 *   ProducerPeer receive NAMESRV TOPIC NAMESPACE|- COUNT   prints COUNT messages
 * </pre>
 * Lines are {@code SENT what queue offset} and {@code GOT tags queue offset crc32 length topic uniqueId}.
 */
public final class ProducerPeer {
    private static final String[] KEYS = {"orders-7", "a", "polygenelubricants", "\u043a\u043b\u044e\u0447", "\ud83d\ude00"};

    private ProducerPeer() {
    }

    public static void main(String[] args) throws Exception {
        String namespace = args[3].equals("-") ? null : args[3];
        if (args[0].equals("send")) {
            send(args[1], args[2], namespace);
        } else {
            receive(args[1], args[2], namespace, Integer.parseInt(args[4]));
        }
        System.exit(0);
    }

    private static void send(String namesrv, String topic, String namespace) throws Exception {
        DefaultMQProducer producer = new DefaultMQProducer("producer_peer");
        producer.setNamespace(namespace);
        producer.setNamesrvAddr(namesrv);
        producer.start();
        StringBuilder large = new StringBuilder();
        for (int i = 0; i < 2000; i++) {
            large.append("all work and no play ");
        }
        print("large", producer.send(new Message(topic, "large", large.toString().getBytes(StandardCharsets.UTF_8))));
        List<Message> batch = new ArrayList<>();
        for (int i = 0; i < 3; i++) {
            batch.add(new Message(topic, "batch" + i, ("item " + i).getBytes(StandardCharsets.UTF_8)));
        }
        print("batch", producer.send(batch));
        SelectMessageQueueByHash byHash = new SelectMessageQueueByHash();
        for (String key : KEYS) {
            print(key, producer.send(new Message(topic, "hash", key.getBytes(StandardCharsets.UTF_8)), byHash, key));
        }
        producer.shutdown();
    }

    private static void print(String what, SendResult result) {
        System.out.println("SENT " + what + " " + result.getMessageQueue().getQueueId() + " " + result.getQueueOffset() + " " + result.getSendStatus());
    }

    private static void receive(String namesrv, String topic, String namespace, int count) throws Exception {
        CountDownLatch missing = new CountDownLatch(count);
        List<String> lines = Collections.synchronizedList(new ArrayList<>());
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer("consumer_peer_" + System.nanoTime());
        consumer.setNamespace(namespace);
        consumer.setNamesrvAddr(namesrv);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            for (MessageExt message : messages) {
                CRC32 crc = new CRC32();
                crc.update(message.getBody());
                lines.add("GOT " + message.getTags() + " " + message.getQueueId() + " " + message.getQueueOffset() + " " + crc.getValue()
                    + " " + message.getBody().length + " " + message.getTopic() + " " + message.getMsgId());
                missing.countDown();
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        missing.await(60, TimeUnit.SECONDS);
        consumer.shutdown();
        lines.forEach(System.out::println);
    }
}
