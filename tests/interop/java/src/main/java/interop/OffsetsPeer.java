package interop;

import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.rocketmq.client.consumer.store.OffsetSerializeWrapper;
import org.apache.rocketmq.common.MixAll;
import org.apache.rocketmq.common.message.MessageQueue;

/**
 * Local offset files (offsets.json) as Apache's broadcasting consumers write and read them.
 *
 * <pre>
 *   OffsetsPeer write FILE topic;broker;queue;offset ...   writes the file, keeping what it held in FILE.bak
 *   OffsetsPeer read FILE                                  prints topic;broker;queue;offset lines, sorted
 * </pre>
 */
public final class OffsetsPeer {
    private OffsetsPeer() {
    }

    public static void main(String[] args) throws Exception {
        if (args[0].equals("write")) {
            OffsetSerializeWrapper wrapper = new OffsetSerializeWrapper();
            for (int i = 2; i < args.length; i++) {
                String[] parts = args[i].split(";");
                MessageQueue queue = new MessageQueue(parts[0], parts[1], Integer.parseInt(parts[2]));
                wrapper.getOffsetTable().put(queue, new AtomicLong(Long.parseLong(parts[3])));
            }
            MixAll.string2File(wrapper.toJson(true), args[1]);
            return;
        }
        String content = new String(Files.readAllBytes(Paths.get(args[1])), StandardCharsets.UTF_8);
        OffsetSerializeWrapper wrapper = OffsetSerializeWrapper.fromJson(content, OffsetSerializeWrapper.class);
        Map<String, Long> sorted = new TreeMap<>();
        for (Map.Entry<MessageQueue, AtomicLong> entry : wrapper.getOffsetTable().entrySet()) {
            MessageQueue queue = entry.getKey();
            String name = queue.getTopic() + ";" + queue.getBrokerName() + ";" + queue.getQueueId();
            sorted.put(name, entry.getValue().get());
        }
        for (Map.Entry<String, Long> entry : sorted.entrySet()) {
            System.out.println(entry.getKey() + ";" + entry.getValue());
        }
    }
}
